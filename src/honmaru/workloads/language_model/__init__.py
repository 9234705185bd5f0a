"""honmaru-lm: pretrain a small Llama-architecture language model on any UTF-8 text.

Run inside the sandbox as `python -m honmaru.workloads.language_model`. Input: text files in the channel "training",
hyperparameters.json. Output: a Hugging Face model directory in /opt/ml/model. No pickle is read or written.

Source: the recipe was measured on 2 CPU cores (docs/adr and the tests state the figures).
"""
