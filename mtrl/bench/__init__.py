"""What ``mtrl bench`` times, apart from the environments: updates against floors, plain torch and each other."""
