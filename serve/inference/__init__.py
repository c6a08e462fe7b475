"""Models, batches and queues of the server. No HTTP here."""
