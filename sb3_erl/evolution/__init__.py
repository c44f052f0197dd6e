"""Who proposes candidates: evolvers with ask and tell."""
