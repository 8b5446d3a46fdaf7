"""The training step of small models on CPUs, in C++ that is compiled for the machine it runs on."""
