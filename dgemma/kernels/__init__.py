"""The operations that have, or will have, a fast path: vocabulary and experts."""
