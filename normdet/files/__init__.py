"""What many packages use: atomic files, locks, memory, faults, versions, words, styles."""
