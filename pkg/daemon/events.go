package daemon

import "ptthqd/pkg/host"

// The messages of this package that have a MESSAGE_ID.
const (
	msgStarted      = "ptthqd is ready"
	msgStopping     = "ptthqd is stopping"
	msgStopped      = "ptthqd has stopped"
	msgFailed       = "ptthqd can't run"
	msgReloaded     = "config reloaded"
	msgReloadFailed = "config not reloaded, the old one goes on"
	msgWatchdog     = "the watchdog isn't fed any more"
)

// messageIDs are the MESSAGE_IDs of events that an administrator's program may look for, whatever
// the wording becomes: `journalctl MESSAGE_ID=...`. docs/journal.md lists them.
var messageIDs = map[string]string{
	msgStarted:           "436558d710fe958c747994902c433393",
	msgStopping:          "0dd4e4873d13b056e058695fb78bb22a",
	msgStopped:           "ef19a0a5819ea75ac066711cf267a6d8",
	msgFailed:            "4265ce23bc19a1f2b6aea7bf918d6677",
	msgReloaded:          "0286a7cf115e855d5bd2a550694f2426",
	msgReloadFailed:      "e5bb45082e734852827d8ceff4b9ad74",
	msgWatchdog:          "411193e9bb57fa26427d73c3d77667ce",
	host.LinesMissing:    "c4707e5f7a6945cfb449c1ec8f73b481",
	"link up":            "8be7cdd7cd1e02d2109341aa7dff84f1",
	"link down":          "9842b763f5e84df63697f8b1c2051cab",
	"connection ended":   "b1222b89133afac84429fd16d7b95172",
	"connection refused": "455abe1bb7e08a3820ffb11b5fdd693b",
	"connection failed":  "49dbd6143edbb93c8592238132c54401",
	"connection revoked": "ab4827e98bcb5f566f74c7bed20944d9",
}
