"""From a regularizer to the inner loop: specs, the landscape of a task, absorption."""
