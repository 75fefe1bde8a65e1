package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// snapshotFlags say when and where a server saves snapshots by itself.
func snapshotFlags() []cli.Flag {
	return append([]cli.Flag{
		stringFlag("snapshot-schedule", "when snapshots are saved, in UTC: MINUTE HOUR DAY MONTH WEEKDAY, or @daily and the like; CRON_TZ=ZONE before it for another time zone; off for never", backup.DefaultSchedule),
		numberFlag("snapshot-keep", "snapshots that stay in each place, the newest", 5),
		stringFlag("snapshot-max-age", "snapshots that are older go too, but never the newest, such as 30d or 12h (default: any age)", ""),
		stringFlag("snapshot-dir", "folder of this server for them; its parent must be there (default: DATA-DIR/snapshots)", ""),
		stringFlag("snapshot-s3", "s3://BUCKET/PREFIX where the server that leads stores them as well; give it to all servers", ""),
		boolFlag("snapshot-compress", "compress them with zstd"),
		stringFlag("snapshot-encrypt-to", "encrypt them for the holder of an age key: age1..., or a file of such lines", ""),
		stringFlag("snapshot-encrypt-passphrase-file", "encrypt them with the passphrase in a file", ""),
	}, s3Flags()...)
}

// parseSnapshots reads snapshotFlags; nil if the schedule is off.
func parseSnapshots(c *cli.Context, dataDir string) (*cluster.Snapshots, error) {
	s3 := c.String("snapshot-s3")
	// off is false in a YAML file.
	if off := c.String("snapshot-schedule"); off == membership.SnapshotsOff || off == "false" {
		if s3 != "" {
			return nil, usagef("--snapshot-s3 %s without effect: --snapshot-schedule is off", s3)
		}
		return nil, nil
	}
	out := &cluster.Snapshots{Dir: c.String("snapshot-dir"), Retention: backup.Retention{Keep: c.Int("snapshot-keep")}}
	var err error
	if out.Cron, err = backup.ParseCron(c.String("snapshot-schedule")); err != nil {
		return nil, usagef("--snapshot-schedule %v, or off", err)
	}
	if out.Retention.Keep < 1 {
		return nil, usagef("--snapshot-keep %d: want at least 1", out.Retention.Keep)
	}
	if text := c.String("snapshot-max-age"); text != "" {
		if out.Retention.MaxAge, err = parseAge(text); err != nil {
			return nil, usagef("--snapshot-max-age %q: %v", text, err)
		}
	}
	if out.Dir == "" {
		out.Dir = filepath.Join(dataDir, "snapshots")
	} else if isS3(out.Dir) {
		return nil, usagef("--snapshot-dir %s: want a folder; a bucket is named with --snapshot-s3", out.Dir)
	}
	if out.Dir, err = filepath.Abs(out.Dir); err != nil {
		return nil, fmt.Errorf("--snapshot-dir: %w", err)
	}
	out.Save.Compress = c.Bool("snapshot-compress")
	if out.Save.Encrypt, err = recipientsOf(c, "snapshot-encrypt-to", "snapshot-encrypt-passphrase-file"); err != nil {
		return nil, err
	}
	if s3 == "" {
		var idle []string
		for _, f := range s3Flags() {
			if name := f.Names()[0]; c.IsSet(name) {
				idle = append(idle, "--"+name)
			}
		}
		if len(idle) > 0 {
			slices.Sort(idle)
			return nil, usagef("%s without effect: name the place with --snapshot-s3 s3://BUCKET/PREFIX", strings.Join(idle, " "))
		}
		return out, nil
	}
	place, err := openS3(c, "--snapshot-s3", s3)
	if err != nil {
		return nil, err
	}
	out.Remote = place
	return out, nil
}
