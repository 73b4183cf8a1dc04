"""V2 over gRPC: the Open Inference Protocol's service with Triton's additions, on the same path as HTTP."""
