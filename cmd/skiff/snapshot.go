package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/seal"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name:  "snapshot",
		Usage: "save, check, compare and restore the state of the cluster",
		Description: "Where a file is named it may be s3://BUCKET/PREFIX/FILE, and where a folder is, s3://BUCKET/PREFIX; the\n" +
			"flags --s3-... say how the service is reached. Commands that read a file copy it to TMPDIR first.",
		Subcommands: []*cli.Command{
			snapshotSaveCommand(),
			snapshotStatusCommand(),
			snapshotVerifyCommand(),
			snapshotLsCommand(),
			snapshotPruneCommand(),
			snapshotDiffCommand(),
			snapshotExportCommand(),
			snapshotRestoreCommand(),
			snapshotKeygenCommand(),
		},
	}
}

func writeOutFlag() cli.Flag {
	return &cli.StringFlag{Name: "write-out", Aliases: []string{"w"}, Usage: "table, json or simple", Value: "table", EnvVars: env("write-out")}
}

// unlockFlags say how to open an encrypted file; what seals single values within
// is another key, see sealFlags.
func unlockFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "decrypt-key-file", Usage: "file with the age key (AGE-SECRET-KEY-...) of an encrypted snapshot", EnvVars: env("decrypt-key-file")},
		&cli.StringFlag{Name: "decrypt-passphrase-file", Usage: "file with the passphrase of an encrypted snapshot", EnvVars: env("decrypt-passphrase-file")},
	}, append(more, s3Flags()...)...)
}

// unlock reads what unlockFlags name; nothing is no error.
func unlock(c *cli.Context) (backup.Unlock, error) {
	var out backup.Unlock
	if path := c.String("decrypt-key-file"); path != "" {
		keys, err := backup.ReadIdentities(path)
		if err != nil {
			return nil, fmt.Errorf("--decrypt-key-file: %w", err)
		}
		out = append(out, keys...)
	}
	passphrase, err := seal.ReadPassphrase(c.String("decrypt-passphrase-file"))
	if err != nil {
		return nil, fmt.Errorf("--decrypt-passphrase-file: %w", err)
	}
	if passphrase != nil {
		keys, err := backup.PassphraseUnlock(passphrase)
		if err != nil {
			return nil, err
		}
		out = append(out, keys...)
	}
	return out, nil
}

// sealFlags name the cluster key, with which Secrets in a snapshot are sealed.
func sealFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "key-file", Usage: "copy of pki/cluster.key of a server of the cluster", EnvVars: env("key-file")},
		&cli.StringFlag{Name: "passphrase-file", Usage: "file with the passphrase of the cluster key; without --key-file the snapshot's own copy of it is used", EnvVars: env("passphrase-file")},
	}, more...)
}

// oneFile is the command's only argument.
func oneFile(c *cli.Context) (string, error) {
	args, err := argsAndFlags(c)
	if err != nil {
		return "", err
	}
	if len(args) != 1 {
		return "", usagef("name one file: skiff snapshot %s FILE", c.Command.Name)
	}
	return args[0], nil
}

func (b *bar) snapshot(s backup.Step) { b.set(s.Bytes, s.Of) }

// verifySnapshot reads a file to its end and shows how far it is.
func verifySnapshot(c *cli.Context, path string, keys backup.Unlock) (*backup.Info, error) {
	b := newBar("verify")
	defer b.done()
	info, err := backup.Verify(c.Context, path, keys, b.snapshot)
	return info, explainSnapshot(err)
}

// explainSnapshot says what to do about a file that can't be read.
func explainSnapshot(err error) error {
	switch {
	case errors.Is(err, backup.ErrEncrypted):
		return fmt.Errorf("%w: name the file of the age key with --decrypt-key-file, or that of the passphrase with --decrypt-passphrase-file", err)
	case errors.Is(err, backup.ErrWrongKey):
		return fmt.Errorf("%w: neither --decrypt-key-file nor --decrypt-passphrase-file fits", err)
	}
	return err
}

// formText says what a snapshot is wrapped in.
func formText(compressed, encrypted bool) string {
	switch {
	case compressed && encrypted:
		return "zstd, age"
	case compressed:
		return "zstd"
	case encrypted:
		return "age"
	}
	return "plain"
}

// savedInfo is what JSON says of one that was saved.
type savedInfo struct {
	Path string `json:"path,omitempty"`
	*backup.Info
}

// printSnapshot prints what etcdutl prints, in the same forms; the table has
// more columns.
func printSnapshot(c *cli.Context, path string, i *backup.Info) error {
	cells := []string{i.Hash[:8], fmt.Sprint(i.Revision), fmt.Sprint(i.TotalKeys), bytesText(i.TotalSize), i.Version}
	switch c.String("write-out") {
	case "json":
		return json.NewEncoder(c.App.Writer).Encode(savedInfo{path, i})
	case "simple":
		_, err := fmt.Fprintln(c.App.Writer, strings.Join(cells, ", "))
		return err
	}
	cells = append(cells, fmt.Sprint(i.FeatureLevel), fmt.Sprint(i.Epoch), i.ClusterID, formText(i.Compressed, i.Encrypted))
	return printBox(c.App.Writer,
		[]string{"HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION", "FEATURE LEVEL", "EPOCH", "CLUSTER ID", "FORM"}, cells)
}

// checkWriteOut refuses a wrong --write-out before anything is done.
func checkWriteOut(c *cli.Context) error {
	switch f := c.String("write-out"); f {
	case "table", "json", "simple":
		return nil
	default:
		return usagef("--write-out is %q, want table, json or simple", f)
	}
}

// printBox prints a table with lines, the numbers at the right.
func printBox(out io.Writer, rows ...[]string) error {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	line := "+"
	for _, w := range width {
		line += strings.Repeat("-", w+2) + "+"
	}
	var b strings.Builder
	fmt.Fprintln(&b, line)
	for n, row := range rows {
		for i, cell := range row {
			left := (width[i] - len(cell)) / 2
			if n > 0 {
				left = width[i] - len(cell)
			}
			fmt.Fprintf(&b, "| %s%s%s ", strings.Repeat(" ", left), cell, strings.Repeat(" ", width[i]-len(cell)-left))
		}
		fmt.Fprintln(&b, "|")
		if n == 0 || n == len(rows)-1 {
			fmt.Fprintln(&b, line)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// encryptFlags say for whom a snapshot is encrypted.
func encryptFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "compress", Usage: "compress with zstd", EnvVars: env("compress")},
		&cli.StringFlag{Name: "encrypt-to", Usage: "encrypt for the holder of an age key: age1..., or a file of such lines, or of keys (skiff snapshot keygen)", EnvVars: env("encrypt-to")},
		&cli.StringFlag{Name: "encrypt-passphrase-file", Usage: "encrypt with the passphrase in a file", EnvVars: env("encrypt-passphrase-file")},
	}
}

// recipients are those of encryptFlags.
func recipients(c *cli.Context) ([]age.Recipient, error) {
	return recipientsOf(c, "encrypt-to", "encrypt-passphrase-file")
}

// recipientsOf reads two flags, of which one at most may be given; none is nobody.
func recipientsOf(c *cli.Context, toFlag, fileFlag string) ([]age.Recipient, error) {
	to, file := c.String(toFlag), c.String(fileFlag)
	switch {
	case to != "" && file != "":
		return nil, usagef("--%s and --%s exclude each other", toFlag, fileFlag)
	case to != "":
		out, err := backup.ReadRecipients(to)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", toFlag, err)
		}
		return out, nil
	}
	passphrase, err := seal.ReadPassphrase(file)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", fileFlag, err)
	}
	if passphrase == nil {
		return nil, nil
	}
	r, err := backup.PassphraseRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	return []age.Recipient{r}, nil
}

// openSealed makes what opens sealed values of a snapshot, by the key file or by
// the passphrase under which the snapshot itself holds the key. It is nil if
// neither is given.
func openSealed(keyFile, passphraseFile string) (backup.OpenSealed, error) {
	passphrase, err := seal.ReadPassphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	find, err := clusterKey(keyFile, passphrase)
	if find == nil || err != nil {
		return nil, err
	}
	return func(own map[string][]byte) (backup.OpenValue, error) {
		key, err := find(own)
		if err != nil {
			return nil, err
		}
		own = maps.Clone(own)
		return func(name string, value []byte) ([]byte, error) {
			own[name] = value
			defer delete(own, name)
			return seal.Open(key, own, name)
		}, nil
	}, nil
}
