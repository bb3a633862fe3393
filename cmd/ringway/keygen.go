package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/durable"
	"ringway/tunnel"
)

const defaultKeyFile = "/etc/ringway/private.key"

func keygenCommand() *cobra.Command {
	var preshared bool
	c := &cobra.Command{
		Use:   "keygen [FILE]",
		Short: "Create a private key (0600, never overwritten) and print its public key",
		Args:  cobra.MaximumNArgs(1),
		Example: `  ringway keygen                                     ` + defaultKeyFile + `
  ringway keygen /etc/ringway/identity.key           this box's identity for keys of media (identity_file)
  ringway keygen --preshared /etc/ringway/munich.psk a preshared key for one pair of sites; copy the file to both`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && preshared {
				return cli.UsageError{Err: errors.New("keygen --preshared needs a FILE (one for each pair of sites)")}
			}
			path := defaultKeyFile
			if len(args) == 1 {
				path = args[0]
			}
			key, err := tunnel.NewPrivateKey()
			if err != nil {
				return err
			}
			if err := writeKey(path, key); err != nil {
				return err
			}

			if preshared {
				fmt.Fprintf(
					c.ErrOrStderr(),
					"preshared key written to %s; copy it to the other site over a secure channel "+
						"and name it in preshared_key_file on both\n",
					path,
				)
				return nil
			}
			fmt.Fprintf(c.ErrOrStderr(), "private key written to %s; give the other sites this public key:\n", path)
			fmt.Fprintln(c.OutOrStdout(), key.Public())
			return nil
		},
	}
	c.Flags().BoolVar(&preshared, "preshared", false, "create a preshared key instead")
	return c
}

// writeKey creates the file for its owner alone. A key that is there stays.
func writeKey(path string, key tunnel.PrivateKey) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create the key's directory: %w", err)
	}
	err := durable.Create(path, []byte(key.Base64()+"\n"), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf(
			"%s already exists and was not changed (a new key would cut off every site that knows the old one; "+
				"to replace it, move the file away first)",
			path,
		)
	}
	if err != nil {
		return fmt.Errorf("create the key file: %w", err)
	}
	return nil
}
