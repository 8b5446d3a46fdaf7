"""From text to token shards: inputs, documents, vocabularies, and the processes that encode."""
