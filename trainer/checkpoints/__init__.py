"""Never lost: what a checkpoint holds, where checkpoints lie, how a run goes on."""
