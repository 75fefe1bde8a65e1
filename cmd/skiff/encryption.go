package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/pki"
	"github.com/skiff-sh/skiff/cluster/seal"
	"github.com/skiff-sh/skiff/cluster/trust"
)

func encryptionCommand() *cli.Command {
	return &cli.Command{
		Name:  "encryption",
		Usage: "show and change how secrets are sealed at rest",
		Description: "Secrets and the cluster's keys are sealed in the log, in snapshots and in backups with a data\n" +
			"key, which is sealed with the cluster key: the file pki/cluster.key in each server's data directory.\n" +
			"Keep a copy of it apart from the snapshots: none can be restored without it.",
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show the keys and what is sealed with them",
				Flags:  clientFlags(outputFlag()),
				Action: func(c *cli.Context) error { return encryption(c, http.MethodGet, seal.StatusPath) },
			},
			{
				Name: "rotate", Usage: "make a new data key and seal everything with it",
				Description: "The command returns at once. Values are rewritten in the background, then the old key is dropped.",
				Flags:       clientFlags(outputFlag()),
				Action:      func(c *cli.Context) error { return encryption(c, http.MethodPost, seal.RotatePath) },
			},
			{
				Name: "seal", Usage: "put the key files of this host's server under a passphrase",
				Description: "The server has to be started with the same --passphrase-file from then on; one that runs goes on.",
				Flags: []cli.Flag{
					dataDirFlag(),
					&cli.StringFlag{Name: "passphrase-file", Usage: "file with the new passphrase, mode 0600", EnvVars: env("passphrase-file")},
					&cli.StringFlag{Name: "old-passphrase-file", Usage: "file with the present passphrase, if there is one", EnvVars: env("old-passphrase-file")},
					&cli.BoolFlag{Name: "plain", Usage: "take the passphrase off", EnvVars: env("plain")},
				},
				Action: sealFiles,
			},
		},
	}
}

func encryption(c *cli.Context, method, path string) error {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	var s seal.Status
	if err := exchange(c, method, path, nil, &s); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(s)
	}
	return printEncryption(c.App.Writer, &s, time.Now())
}

func printEncryption(out io.Writer, s *seal.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	file := "a file of mode 0600"
	if s.Passphrase {
		file = "a file under a passphrase"
	}
	fmt.Fprintf(w, "Cluster key\t%s, in %s\n", s.ClusterKey, file)
	if s.Plain > 0 {
		fmt.Fprintf(w, "Not sealed yet\t%d values\n", s.Plain)
	}
	if s.Rotating {
		fmt.Fprintln(w, "Rotation\tunder way: old data keys are dropped when nothing is sealed with them")
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "PROBLEM\t%s\n", s.Problem)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "DATA KEY\tAGE\tVALUES\tUSE")
	for _, k := range s.DataKeys {
		use := "reads"
		if k.Newest {
			use = "reads, writes"
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\n", k.Number, days(now.Sub(k.Created)), k.Values, use)
	}
	return w.Flush()
}

func sealFiles(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	plain, file := c.Bool("plain"), c.String("passphrase-file")
	if plain && c.IsSet("passphrase-file") && file != "" {
		return usagef("--plain and --passphrase-file exclude each other")
	}
	if !plain && file == "" {
		return usagef("name the file with the new passphrase with --passphrase-file, or take it off with --plain")
	}
	old, err := seal.ReadPassphrase(c.String("old-passphrase-file"))
	if err != nil {
		return err
	}
	var next []byte
	if !plain {
		if next, err = seal.ReadPassphrase(file); err != nil {
			return err
		}
	}
	dir := filepath.Join(c.String("data-dir"), "pki")
	if err := pki.ChangePassphrase(dir, old, next); err != nil {
		if errors.Is(err, seal.ErrPassphraseNeeded) {
			return fmt.Errorf("%s is sealed already: name the file with its passphrase with --old-passphrase-file", filepath.Join(dir, seal.KeyFile))
		}
		return err
	}
	text := "the keys in %s are sealed; start the server with --passphrase-file from now on\n"
	if plain {
		text = "the keys in %s are no longer under a passphrase\n"
	}
	_, err = fmt.Fprintf(c.App.Writer, text, dir)
	return err
}

// clusterKey finds the cluster key of a snapshot, from what is below /skiff/ in
// it: by the key file or by the passphrase under which the snapshot itself holds
// the key. It is nil if neither is given.
func clusterKey(keyFile string, passphrase []byte) (func(state map[string][]byte) (*seal.Key, error), error) {
	if keyFile != "" {
		key, err := seal.ReadKey(keyFile, passphrase)
		if err != nil {
			return nil, err
		}
		return func(map[string][]byte) (*seal.Key, error) { return key, nil }, nil
	}
	if passphrase == nil {
		return nil, nil
	}
	return func(state map[string][]byte) (*seal.Key, error) {
		file, ok := state[seal.FileKey]
		if !ok {
			return nil, errors.New("it does not hold the cluster key under a passphrase: name a copy of the key with --key-file")
		}
		return seal.ParseKey(file, passphrase)
	}, nil
}

// restoreKeys opens what a snapshot has sealed, see clusterKey.
func restoreKeys(keyFile, passphraseFile string) (func(map[string][]byte) (map[string][]byte, error), error) {
	passphrase, err := seal.ReadPassphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	find, err := clusterKey(keyFile, passphrase)
	if find == nil || err != nil {
		return nil, err
	}
	return func(state map[string][]byte) (map[string][]byte, error) {
		key, err := find(state)
		if err != nil {
			return nil, err
		}
		if passphrase != nil && key.Sealed() == nil {
			if key, err = key.WithPassphrase(passphrase); err != nil {
				return nil, err
			}
		}
		files, err := trust.Recover(state, key)
		if err != nil {
			return nil, err
		}
		return pki.OnDisk(files, key)
	}, nil
}

// explainRestore says what to do about a snapshot that could not be restored.
func explainRestore(err error) error {
	switch {
	case errors.Is(err, backup.ErrExists):
		return fmt.Errorf("%w: a restore never overwrites; choose another directory, or move away what it holds of a member (raft, pki, node-id, cluster.json); pods of this host that run from the directory are kept then", err)
	case errors.Is(err, backup.ErrSealed):
		return fmt.Errorf("%w: name a copy of a server's pki/%s with --key-file, or the passphrase's file with --passphrase-file", err, seal.KeyFile)
	}
	return err
}
