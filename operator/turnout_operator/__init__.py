"""The operator: turns LLMDeployments into pools of workers, scales them, and tells the truth in their status."""
