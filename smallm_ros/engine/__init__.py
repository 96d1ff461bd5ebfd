"""The model in its own process: what may touch llama.cpp, the engine's socket and its worker."""
