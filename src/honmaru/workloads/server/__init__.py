"""The embedded model server: one model on one UNIX socket, speaking a subset of the OpenAI HTTP API.

Run inside the sandbox as `python -m honmaru.workloads.server --model DIR --socket PATH`. POST /v1/chat/completions and
/v1/completions (streamed or not), /v1/embeddings for an encoder, POST /tokenize, GET /v1/models and /health. It has no
network and keeps no state: prompts and answers live in memory for as long as they are answered, and no cache outlives
or spans requests.
"""
