package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

func snapshotPruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "delete old snapshots from a folder", ArgsUsage: "[DIR]",
		Description: "Only files with a name that skiff gave are counted and deleted, each cluster's for itself, and never\n" +
			"the newest that is whole. If none is, none is deleted. An encrypted file is whole if it can be\n" +
			"decrypted; where the key is kept elsewhere, --trust-encrypted takes such files as they are.",
		Flags: unlockFlags(
			&cli.IntFlag{Name: "keep", Usage: "how many stay, the newest", EnvVars: env("keep")},
			&cli.StringFlag{Name: "max-age", Usage: "delete older ones, such as 36h or 30d", EnvVars: env("max-age")},
			&cli.BoolFlag{Name: "trust-encrypted", Usage: "an encrypted file that can't be read counts as whole", EnvVars: env("trust-encrypted")},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be deleted", EnvVars: env("dry-run")},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")},
			outputFlag()),
		Action: pruneSnapshots,
	}
}

// pruned is what JSON says of a prune.
type pruned struct {
	Deleted []backup.Entry `json:"deleted"`
	DryRun  bool           `json:"dryRun"`
}

func pruneSnapshots(c *cli.Context) error {
	place, err := onePlace(c)
	if err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	r, err := retention(c)
	if err != nil {
		return err
	}
	keys, err := unlock(c)
	if err != nil {
		return err
	}
	entries, err := place.List(c.Context)
	if err != nil {
		return err
	}
	locked := 0
	gone := r.Expired(entries, time.Now(), func(e backup.Entry) bool {
		_, err := backup.VerifyIn(c.Context, place, e.Name, keys, nil)
		if errors.Is(err, backup.ErrEncrypted) || errors.Is(err, backup.ErrWrongKey) {
			locked++
			return c.Bool("trust-encrypted")
		}
		return err == nil
	})
	if err := c.Context.Err(); err != nil {
		return err
	}
	if len(gone) == 0 && locked > 0 && !c.Bool("trust-encrypted") {
		return fmt.Errorf("%d encrypted snapshots in %s can't be verified: name the key with --decrypt-key-file or --decrypt-passphrase-file, or say --trust-encrypted", locked, place)
	}
	if !asJSON {
		printPrune(c, place, gone, len(backup.Ours(entries, "")))
	}
	if !c.Bool("dry-run") && len(gone) > 0 {
		if !c.Bool("yes") {
			if err := confirm(c, "Delete them?"); err != nil {
				return err
			}
		}
		for _, e := range gone {
			if err := place.Remove(c.Context, e.Name); err != nil {
				return err
			}
		}
	}
	if asJSON {
		if gone == nil {
			gone = []backup.Entry{}
		}
		return json.NewEncoder(c.App.Writer).Encode(pruned{gone, c.Bool("dry-run")})
	}
	return nil
}

func printPrune(c *cli.Context, place backup.Place, gone []backup.Entry, all int) {
	var size int64
	for _, e := range gone {
		fmt.Fprintf(c.App.Writer, "%s\t%s\n", e.Name, bytesText(e.Size))
		size += e.Size
	}
	fmt.Fprintf(c.App.Writer, "%d of %d snapshots in %s to delete, %s\n", len(gone), all, place, bytesText(size))
}

func retention(c *cli.Context) (backup.Retention, error) {
	r := backup.Retention{Keep: c.Int("keep")}
	if c.IsSet("keep") && r.Keep < 1 {
		return r, usagef("--keep is %d, want 1 or more", r.Keep)
	}
	if s := c.String("max-age"); s != "" {
		var err error
		if r.MaxAge, err = parseAge(s); err != nil {
			return r, usagef("--max-age %q: %v", s, err)
		}
	}
	if r == (backup.Retention{}) {
		return r, usagef("say what stays with --keep or --max-age")
	}
	return r, nil
}

// parseAge reads a duration that may be in days.
func parseAge(s string) (time.Duration, error) {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		days, err := strconv.Atoi(n)
		if err != nil || days < 1 || days > 36500 {
			return 0, errors.New("want 1d to 36500d")
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, errors.New("want a duration such as 36h or 30d")
	}
	return d, nil
}
