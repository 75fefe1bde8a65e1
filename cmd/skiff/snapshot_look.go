package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
)

func snapshotStatusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "verify FILE and show what is in it", ArgsUsage: "FILE",
		Description: "Of an encrypted file without its key, what can be known is shown, and the exit code is 1.",
		Flags:       unlockFlags(writeOutFlag()),
		Action: func(c *cli.Context) error {
			_, path, keys, done, err := namedSnapshot(c)
			if err != nil {
				return err
			}
			defer done()
			info, err := verifySnapshot(c, path, keys)
			if errors.Is(err, backup.ErrEncrypted) || errors.Is(err, backup.ErrWrongKey) {
				return errors.Join(printLocked(c, path), err)
			}
			if err != nil {
				return err
			}
			return printSnapshot(c, "", info)
		},
	}
}

// namedSnapshot is the file that status and verify are about, as it was named and
// where it can be read until done is called, and the keys for it.
func namedSnapshot(c *cli.Context) (named, local string, keys backup.Unlock, done func(), err error) {
	if named, err = oneFile(c); err != nil {
		return "", "", nil, nil, err
	}
	if err = checkWriteOut(c); err != nil {
		return "", "", nil, nil, err
	}
	if keys, err = unlock(c); err != nil {
		return "", "", nil, nil, err
	}
	local, done, err = fetch(c, named)
	return named, local, keys, done, err
}

// lockedInfo is what is known of an encrypted file without its key.
type lockedInfo struct {
	Encrypted bool       `json:"encrypted"`
	For       string     `json:"for"`
	TotalSize int64      `json:"totalSize"`
	Modified  time.Time  `json:"modified"`
	Cluster   string     `json:"clusterByName,omitempty"`
	Revision  int64      `json:"revisionByName,omitempty"`
	Saved     *time.Time `json:"savedByName,omitempty"`
}

func printLocked(c *cli.Context, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	i := lockedInfo{Encrypted: true, TotalSize: st.Size(), Modified: st.ModTime().UTC().Truncate(time.Second)}
	if i.For, err = backup.Locks(path); err != nil {
		return err
	}
	name, named := backup.ParseName(filepath.Base(path))
	if named {
		i.Cluster, i.Revision, i.Saved = name.Cluster, name.Revision, &name.At
	}
	if c.String("write-out") == "json" {
		return json.NewEncoder(c.App.Writer).Encode(i)
	}
	text := fmt.Sprintf("%s is encrypted for %s: %s, written at %s", path, i.For, bytesText(i.TotalSize), i.Modified.Format(time.RFC3339))
	if named {
		text += fmt.Sprintf("; by its name, revision %d of cluster %s, saved at %s", i.Revision, i.Cluster, i.Saved.Format(time.RFC3339))
	}
	_, err = fmt.Fprintln(c.App.Writer, text)
	return err
}

func snapshotVerifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "verify every byte of FILE", ArgsUsage: "FILE",
		Flags: unlockFlags(writeOutFlag()),
		Action: func(c *cli.Context) error {
			path, local, keys, done, err := namedSnapshot(c)
			if err != nil {
				return err
			}
			defer done()
			info, err := verifySnapshot(c, local, keys)
			if err != nil {
				return err
			}
			if c.String("write-out") != "table" {
				return printSnapshot(c, "", info)
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s is whole: revision %d, %d keys, sha256 %s\n", path, info.Revision, info.TotalKeys, info.Hash)
			return err
		},
	}
}

func snapshotLsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list the snapshots in a folder, and whether they are whole", ArgsUsage: "[DIR]",
		Description: "Each file is read to its end, unless --quick is given.",
		Flags: unlockFlags(
			&cli.BoolFlag{Name: "quick", Usage: "only what the names and first bytes say", EnvVars: env("quick")},
			outputFlag()),
		Action: func(c *cli.Context) error {
			place, err := onePlace(c)
			if err != nil {
				return err
			}
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			keys, err := unlock(c)
			if err != nil {
				return err
			}
			list, err := listSnapshots(c.Context, place, keys, c.Bool("quick"))
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(c.App.Writer).Encode(list)
			}
			return printSnapshots(c, place, list)
		},
	}
}

// snapshotFile is a row of ls.
type snapshotFile struct {
	backup.Entry
	Revision   int64  `json:"revision,omitempty"`
	Cluster    string `json:"clusterID,omitempty"` // of an unread file the first characters
	Compressed bool   `json:"compressed,omitempty"`
	Encrypted  bool   `json:"encrypted,omitempty"`
	// State is whole, damaged, later (a later version wrote it), encrypted (no key
	// fits), unreadable, or unread.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

// listSnapshots looks at each file of a folder that is a snapshot, or is called
// one.
func listSnapshots(ctx context.Context, place backup.Place, keys backup.Unlock, quick bool) ([]snapshotFile, error) {
	entries, err := place.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []snapshotFile{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := snapshotFile{Entry: e}
		name, named := backup.ParseName(e.Name)
		if named {
			f.Revision, f.Cluster, f.Compressed, f.Encrypted = name.Revision, name.Cluster, name.Compressed, name.Encrypted
		}
		info, err := backup.PeekIn(ctx, place, e.Name, keys)
		if err == nil && !quick {
			info, err = backup.VerifyIn(ctx, place, e.Name, keys, nil)
		}
		if f.is(info, err); err != nil && !named && !strings.Contains(e.Name, backup.SuffixPlain) &&
			(f.State == "encrypted" || errors.Is(err, fsm.ErrNotSnapshot)) {
			continue // something else
		}
		if err == nil && quick {
			f.State = "unread"
		}
		out = append(out, f)
	}
	return out, ctx.Err()
}

// is notes what was found.
func (f *snapshotFile) is(info *backup.Info, err error) {
	switch {
	case err == nil:
		f.State, f.Revision, f.Cluster, f.Compressed, f.Encrypted = "whole", info.Revision, info.ClusterID, info.Compressed, info.Encrypted
		return
	case errors.Is(err, backup.ErrEncrypted) || errors.Is(err, backup.ErrWrongKey):
		f.State, f.Encrypted = "encrypted", true
	case errors.Is(err, fsm.ErrSnapshotVersion) || errors.Is(err, fsm.ErrLevel):
		f.State = "later"
	case backup.Refused(err):
		f.State = "damaged"
	default:
		f.State = "unreadable"
	}
	f.Error = err.Error()
}

func printSnapshots(c *cli.Context, place backup.Place, list []snapshotFile) error {
	if len(list) == 0 {
		fmt.Fprintln(os.Stderr, "no snapshots in", place)
		return nil
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tREVISION\tSIZE\tAGE\tCLUSTER\tFORM\tSTATE")
	for _, f := range list {
		revision, cluster := "-", "-"
		if f.Revision > 0 {
			revision = fmt.Sprint(f.Revision)
		}
		if f.Cluster != "" {
			cluster = backup.ShortID(f.Cluster)
		}
		state := f.State
		if f.State == "damaged" || f.State == "unreadable" {
			state = strings.ToUpper(state) + ": " + f.Error
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, revision, bytesText(f.Size), days(time.Since(f.at())), cluster, formText(f.Compressed, f.Encrypted), state)
	}
	return w.Flush()
}

// at is when it was saved: by its name, else by the file system.
func (f *snapshotFile) at() time.Time {
	if n, ok := backup.ParseName(f.Name); ok {
		return n.At
	}
	return f.Modified
}
