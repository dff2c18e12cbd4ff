"""From manifests to batches: manifest → prepare → shards → plan → packed rows; crops of audio for codec training."""
