"""The operations that have, or will have, a fast path: head, experts, attention, norm."""
