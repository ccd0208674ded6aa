"""Native engines: a model as a plan that is data, run by kernels in C."""
