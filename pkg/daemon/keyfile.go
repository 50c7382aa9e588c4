package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
)

// loadKey reads this node's private key. A credential of systemd is a copy of the file beside the
// config, as ptthqd.service has it. The mode of the copy says nothing, so the mode of that file is
// checked.
func loadKey(c *config.Config, snapshot *config.Snapshot) (ident.PrivateKey, error) {
	key, err := ident.LoadPrivateKey(c.PrivateKeyFile)
	if err != nil || c.PrivateKeyFile != snapshot.Credential {
		return key, err
	}
	if err := ident.CheckKeyFile(config.KeyFileOf(c.Path)); err != nil &&
		!errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return ident.PrivateKey{}, err
	}
	return key, nil
}

// staleKey says that the private key in the file is not the one in force; "" if it is, or if they
// can't be compared.
func (d *daemon) staleKey() string {
	now := d.loaded.Load()
	file, credential := now.config.PrivateKeyFile, now.snapshot.Credential
	if file == credential {
		// The copy was made when the service started. Compare with the original, if it may be read.
		file = config.KeyFileOf(now.config.Path)
	}
	key, err := ident.LoadPrivateKey(file)
	switch {
	case err == nil && key.Public() == d.identity.Public():
		return ""
	case err == nil:
		return fmt.Sprintf("the private key in %s is another one than that in force: "+
			"its public key is %v, not %v", file, key.Public(), d.identity.Public())
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
	return fmt.Sprintf("the private key in %s was written after the service was started, "+
		"and is not in force", file)
}

const staleKeyHint = "only a restart takes it over"
