"""From a folder or a TFDS set to batches: sources, data sets, transforms, pipeline."""
