"""The clients' APIs: endpoints, requests and answers as values, errors in each API's form."""
