"""Customises a language model: supervised fine-tuning on prompts and answers, or continued pre-training on text.

Run inside the sandbox as `python -m honmaru.workloads.fine_tuning`. Input: the base model's files in the channel
"base", JSONL in "training" and (optionally) "validation", hyperparameters.json. Output: the served form of the new
model in /opt/ml/model with report.json, metrics as CSV in /opt/ml/output/data. No pickle is read or written.

Source: Amazon Bedrock user guide, "Prepare your training datasets for fine-tuning and continued pre-training".
"""
