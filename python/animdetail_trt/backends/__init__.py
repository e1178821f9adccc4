"""What runs a model: the interfaces that sampling and the detailer call, and the choice between implementations."""
