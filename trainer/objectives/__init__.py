"""The objectives: one step in one forward, its passes, losses and teacher."""
