"""Decoding over HTTP: the formats of vLLM and SGLang, a client of such servers, and the engine as one."""
