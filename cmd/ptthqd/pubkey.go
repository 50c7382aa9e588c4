package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ptthqd/pkg/ident"
)

func newPubkeyCommand() *cobra.Command {
	return hideConfig(&cobra.Command{
		Use:   "pubkey [FILE]",
		Short: "Print the public key that belongs to a private one",
		Long: `Print the public key that belongs to the private key in FILE, or on standard
input. It is what the config at the other end wants as public_key.`,
		Example: `  ptthqd pubkey /etc/ptthq.key
  ptthqd keygen | tee >(ptthqd pubkey >&2) | systemd-creds encrypt --name=ptthq.key - ptthq.key.cred`,
		Args: atMostOne("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := readPrivateKey(cmd, args)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key.Public())
			return err
		},
	})
}

// maxInput bounds standard input, in bytes: a key and much white space.
const maxInput = 4096

func readPrivateKey(cmd *cobra.Command, args []string) (ident.PrivateKey, error) {
	if len(args) == 1 {
		return ident.LoadPrivateKey(args[0])
	}
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxInput))
	if err != nil {
		return ident.PrivateKey{}, fmt.Errorf("read standard input: %w", err)
	}
	key, err := ident.ParsePrivateKey(text)
	if err != nil {
		return ident.PrivateKey{}, fmt.Errorf("standard input: %w", err)
	}
	return key, nil
}
