package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"ptthqd/pkg/ident"
)

func newKeygenCommand() *cobra.Command {
	var output string
	var force bool
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a private key",
		Long: `Make a private key: print it, or write it to a file that only its owner may
read. A file that is there is not touched without --force.`,
		Example: `  ptthqd keygen -o /etc/ptthq.key
  ptthqd keygen | systemd-creds encrypt --name=ptthq.key - ptthq.key.cred`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if force && output == "" {
				return usageError("--force is for -o FILE, and there is none")
			}
			return keygen(cmd, output, force)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "",
		"write the key to `FILE`, and its public key to stdout")
	cmd.Flags().BoolVar(&force, "force", false, "put the new key in the place of one that is there")
	return hideConfig(cmd)
}

func keygen(cmd *cobra.Command, output string, force bool) error {
	key, err := ident.Generate()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if output == "" {
		if openToOthers(out) {
			fmt.Fprintln(cmd.ErrOrStderr(),
				"ptthqd: warning: others can read the file that this private key goes to; "+
					"`ptthqd keygen -o FILE` makes one that they cannot")
		}
		_, err := out.Write(key.Encode())
		return err
	}
	err = ident.WritePrivateKey(output, key, force)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: --force replaces it, and with it this node's identity", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, key.Public())
	return err
}

// openToOthers reports whether w is a file that others than its owner may read.
func openToOthers(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || runtime.GOOS == "windows" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0
}
