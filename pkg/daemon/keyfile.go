package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
)

// loadKey reads this node's private key. Where it is a credential, the file beside the config counts as its source, as it
// does in ptthqd.service, and must be as closed as `ptthqd check` wants it: the credential's own mode tells nothing of it.
func loadKey(c *config.Config, snapshot *config.Snapshot) (ident.PrivateKey, error) {
	key, err := ident.LoadPrivateKey(c.PrivateKeyFile)
	if err != nil || c.PrivateKeyFile != snapshot.Credential {
		return key, err
	}
	if err := ident.CheckKeyFile(config.KeyFileOf(c.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return ident.PrivateKey{}, err
	}
	return key, nil
}

// staleKey tells that the private key in the file is not the one in force; empty if it is, or can't be compared.
func (d *daemon) staleKey() string {
	now := d.loaded.Load()
	file, credential := now.config.PrivateKeyFile, now.snapshot.Credential
	if file == credential {
		// A copy that was made when the service was started. The daemon's user may look at the file of which it was made.
		file = config.KeyFileOf(now.config.Path)
	}
	key, err := ident.LoadPrivateKey(file)
	switch {
	case err == nil && key.Public() == d.identity.Public():
		return ""
	case err == nil:
		return fmt.Sprintf("the private key in %s is another one than that in force: its public key is %v, not %v", file, key.Public(), d.identity.Public())
	case now.config.PrivateKeyFile != credential || !errors.Is(err, fs.ErrPermission):
		return ""
	}
	written, err := os.Stat(file)
	if err != nil {
		return ""
	}
	copied, err := os.Stat(credential)
	if err != nil || !written.ModTime().After(copied.ModTime()) {
		return ""
	}
	return fmt.Sprintf("the private key in %s was written after the service was started, and is not in force", file)
}

const staleKeyHint = "only a restart takes it over"
