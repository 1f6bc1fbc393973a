"""The API server as the operator sees it: credentials, kinds, requests."""
