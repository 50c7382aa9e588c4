package daemon

// SetJournalSocket changes where the journal is.
func SetJournalSocket(path string) { journalSocket = path }
