"""The files of models and adapters: found, checked, and copied into a cache that several workers may share."""
