"""The operator: turns LLMDeployments into pools of workers, scales them, and reports their state in status."""
