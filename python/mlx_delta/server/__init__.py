"""HTTP over one loaded model: requests of OpenAI's and Anthropic's clients in, their answers out.

Needs the extra ``server``; nothing here is imported before ``mlx-delta serve`` runs.
"""
