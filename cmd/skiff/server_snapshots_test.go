package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/membership"
)

func TestSnapshotFlags(t *testing.T) {
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	if err := os.WriteFile(keys, []byte("[default]\naws_access_key_id=a\naws_secret_access_key=b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	off, some := filepath.Join(dir, "off.yaml"), filepath.Join(dir, "some.yaml")
	for path, content := range map[string]string{off: "snapshot-schedule: off\n",
		some: "snapshot-schedule: 5 * * * *\nsnapshot-keep: 7\nsnapshot-compress: true\nsnapshot-s3: s3://bucket/a\ns3-credentials-file: " + keys + "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args []string
		env  map[string]string
		want string // of the error; empty: none
		see  func(*cluster.Snapshots) bool
	}{
		{see: func(s *cluster.Snapshots) bool {
			return s.Cron.String() == "0 */12 * * *" && s.Retention == backup.Retention{Keep: 5} && s.Dir == "/var/lib/skiff/snapshots" && s.Remote == nil && s.Save.Encrypt == nil
		}},
		{args: []string{"--config", off}, see: func(s *cluster.Snapshots) bool { return s == nil }},
		{args: []string{"--config", some}, see: func(s *cluster.Snapshots) bool {
			return s.Cron.String() == "5 * * * *" && s.Retention.Keep == 7 && s.Save.Compress && s.Remote.String() == "s3://bucket/a"
		}},
		{args: []string{"--snapshot-schedule", "off"}, see: func(s *cluster.Snapshots) bool { return s == nil }},
		{args: []string{"--snapshot-schedule", "CRON_TZ=Europe/Berlin 5 4 * * 6", "--snapshot-keep", "2", "--snapshot-max-age", "30d", "--snapshot-dir", dir, "--snapshot-compress"}, see: func(s *cluster.Snapshots) bool {
			return s.Retention == backup.Retention{Keep: 2, MaxAge: 720 * time.Hour} && s.Dir == dir && s.Save.Compress
		}},
		{args: []string{"--snapshot-s3", "s3://bucket/a", "--s3-credentials-file", keys}, see: func(s *cluster.Snapshots) bool { return s.Remote.String() == "s3://bucket/a" }},
		{args: []string{"--snapshot-s3", "s3://bucket/a"}, env: map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, see: func(s *cluster.Snapshots) bool { return s.Remote != nil }},
		{args: []string{"--snapshot-encrypt-to", "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"}, see: func(s *cluster.Snapshots) bool { return len(s.Save.Encrypt) == 1 }},
		{args: []string{"--snapshot-schedule", "twice a day"}, want: "--snapshot-schedule"},
		{args: []string{"--snapshot-schedule", "* * * * * *"}, want: "exactly 5 fields"},
		{args: []string{"--snapshot-keep", "0"}, want: "--snapshot-keep 0"},
		{args: []string{"--snapshot-max-age", "30"}, want: "--snapshot-max-age"},
		{args: []string{"--snapshot-dir", "s3://bucket/a"}, want: "--snapshot-s3"},
		{args: []string{"--snapshot-encrypt-to", "bob"}, want: "--snapshot-encrypt-to"},
		{args: []string{"--snapshot-encrypt-to", "age1x", "--snapshot-encrypt-passphrase-file", keys}, want: "exclude each other"},
		{args: []string{"--snapshot-encrypt-passphrase-file", filepath.Join(dir, "none")}, want: "--snapshot-encrypt-passphrase-file"},
		{args: []string{"--snapshot-s3", "s3://bucket/a"}, want: "--s3-credentials-file"},
		{args: []string{"--snapshot-s3", "/mnt/a", "--s3-credentials-file", keys}, want: "s3://BUCKET/PREFIX"},
		{args: []string{"--snapshot-s3", "s3://bucket/a", "--s3-credentials-file", keys, "--s3-endpoint", "http://host"}, want: "--s3-insecure"},
		{args: []string{"--s3-path-style", "--s3-endpoint", "https://host"}, want: "--s3-endpoint --s3-path-style without effect"},
		{args: []string{"--snapshot-schedule", "off", "--snapshot-s3", "s3://bucket/a"}, want: "is off"},
	} {
		t.Setenv("AWS_ACCESS_KEY_ID", tc.env["AWS_ACCESS_KEY_ID"])
		t.Setenv("AWS_SECRET_ACCESS_KEY", tc.env["AWS_SECRET_ACCESS_KEY"])
		cmd := serverCommand()
		var err error
		cmd.Action = func(c *cli.Context) error {
			var o serverOptions
			if c.IsSet("config") {
				if err := loadConfigFile(c); err != nil {
					t.Error(err)
				}
			}
			if o, err = parseServer(c); err == nil && (tc.see == nil || !tc.see(o.cluster.Snapshots)) {
				t.Errorf("%v: %+v", tc.args, o.cluster.Snapshots)
			}
			return nil // the library would end the process
		}
		app := &cli.App{Commands: []*cli.Command{cmd}}
		if err := app.Run(append([]string{"skiff", "server", "--name", "a", "--advertise-address", "127.0.0.1"}, tc.args...)); err != nil {
			t.Fatal(err)
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%v: %v, want %s", tc.args, err, tc.want)
		}
	}
}

func TestPrintScheduled(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	last := &backup.Saved{At: now.Add(-3 * time.Hour), Size: 5 << 20}
	var out bytes.Buffer
	err := printScheduled(&out, []membership.SnapshotStatus{
		{Server: "a", Schedule: "0 */12 * * *", Places: []backup.PlaceStatus{
			{Place: "/s", Last: last, Next: now.Add(time.Hour)}, {Place: "s3://b/p", Last: last, Error: "refused", Failed: &now, Next: now.Add(time.Hour)}}},
		{Server: "b", Schedule: "0 */12 * * *", Places: []backup.PlaceStatus{{Place: "/s", Overdue: &now}}},
		{Server: "c", Schedule: "off"},
	}, now)
	want := `SNAPSHOTS OF   SCHEDULE       PLACE      LAST                   AGE   SIZE    RESULT    NEXT
a              0 */12 * * *   /s         2026-11-21T09:00:00Z   3h    5.0Mi   ok        2026-11-21T13:00:00Z
a              0 */12 * * *   s3://b/p   2026-11-21T09:00:00Z   3h    5.0Mi   FAILED    2026-11-21T13:00:00Z
b              0 */12 * * *   /s         -                      -     -       OVERDUE   -
c              off            -          -                      -     -       -         -

`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}
