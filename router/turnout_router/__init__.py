"""The router: the OpenAI API in front of pools of prefill and decode workers."""
