"""What many rooms use and none owns: whole files, locks, memory, faults, words, looks."""
