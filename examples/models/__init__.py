"""Networks in plain torch that the examples, tests and benchmarks use, with their published weights where there are any."""
