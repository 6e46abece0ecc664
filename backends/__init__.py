"""Back ends: each turns an INTEGER program into something that runs and gives the same integers."""
