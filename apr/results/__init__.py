"""From evaluations to what people read: figures, claims, report."""
