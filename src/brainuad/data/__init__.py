"""From scans on disk to arrays on the model's grid."""
