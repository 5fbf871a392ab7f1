"""What a dataset wrote about a sample, as conversations: questions and answers, with marks for pictures and masks."""
