package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/node/shutdown"
)

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "stop skiff on this host and remove all that skiff install and skiff itself have made",
		Description: "Does what skiff reset --delete-data does, and removes unit, configuration and program. A member of a\n" +
			"cluster with others leaves it first: see skiff leave.",
		Flags: []cli.Flag{
			configFlag(), dataDirFlag(), binDirFlag(), unitDirFlag(),
			&cli.BoolFlag{Name: "keep-data", Usage: "keep the data directory and the configuration", EnvVars: env("keep-data")},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask", EnvVars: env("yes")},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed", EnvVars: env("dry-run")},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if err := needRoot("skiff uninstall"); err != nil {
				return err
			}
			u, err := newUninstallation(c)
			if err != nil {
				return err
			}
			if u.describe(); c.Bool("dry-run") {
				return nil
			}
			if !c.Bool("yes") {
				if err := confirm(c, "Go on?"); err != nil {
					return err
				}
			}
			return u.run(c.Context)
		},
	}
}

// uninstallation is what one run of skiff uninstall takes away.
type uninstallation struct {
	c        *cli.Context
	dataDir  string
	keepData bool
	unit     string   // path; "" if there is none of ours
	byUnit   bool     // systemd runs it
	files    []string // that are there, the unit too
}

func newUninstallation(c *cli.Context) (*uninstallation, error) {
	u := &uninstallation{c: c, keepData: c.Bool("keep-data")}
	var err error
	if u.dataDir, err = installedDataDir(c); err != nil {
		return nil, err
	}
	unit := filepath.Join(c.String("unit-dir"), unitName)
	text, err := os.ReadFile(unit)
	switch {
	case err == nil && strings.HasPrefix(string(text), unitHeader):
		u.unit = unit
		u.byUnit = systemdRuns() && filepath.Clean(c.String("unit-dir")) == defaultUnitDir
	case err == nil:
		fmt.Fprintf(c.App.ErrWriter, "%s was not made by skiff install: it stays\n", unit)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("unit: %w", err)
	}
	may := []string{u.unit, u.unit + ".old", filepath.Join(c.String("bin-dir"), "skiff")}
	if !u.keepData {
		may = append(may, c.String("config"), c.String("config")+".old")
	}
	if u.byUnit { // else it may be another installation's
		may = append(may, shutdown.LogindDropIn)
	}
	for _, f := range may {
		if _, err := os.Lstat(f); err == nil && filepath.IsAbs(f) {
			u.files = append(u.files, f)
		}
	}
	if pid, err := lockedBy(u.dataDir); err != nil {
		return nil, err
	} else if pid != 0 && !u.byUnit {
		return nil, fmt.Errorf("process %d runs on %s: stop it first", pid, u.dataDir)
	}
	return u, nil
}

func (u *uninstallation) say(format string, args ...any) {
	fmt.Fprintf(u.c.App.Writer, format+"\n", args...)
}

func (u *uninstallation) describe() {
	if u.byUnit {
		u.say("unit to stop and disable: %s", unitName)
	}
	for _, f := range u.files {
		u.say("file to remove: %s", f)
	}
	data := "with"
	if u.keepData {
		data = "but not"
	}
	u.say("to remove as skiff reset does: pods, mounts, cgroups, links, rules, %s the data directory %s", data, u.dataDir)
	if folders := (&reset{dataDir: u.dataDir}).logs().Folders(); len(folders) > 0 && !u.keepData {
		u.say("logs of pods to remove, and the links to them: %d folders in %s", len(folders), strings.Join(parents(folders), ", "))
	}
	if name := (&reset{dataDir: u.dataDir}).member(); name != "" && !u.keepData {
		u.say("the other servers keep this host as member %s, unless it has left: see skiff leave, or skiff member remove %s on a server", name, name)
	}
}

// run stops first, and removes the program last: until then it can be repeated.
func (u *uninstallation) run(ctx context.Context) error {
	if u.byUnit {
		if _, err := systemctl(ctx, "disable", "--now", unitName); err != nil {
			return err
		}
	}
	if pid, err := lockedBy(u.dataDir); err != nil || pid != 0 {
		return errors.Join(err, fmt.Errorf("process %d still runs on %s: stop it, and try again", pid, u.dataDir))
	}
	r, err := newReset(ctx, u.dataDir)
	if err != nil {
		return err
	}
	err = r.run(ctx, !u.keepData)
	r.close()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range u.files {
		errs = append(errs, os.Remove(f))
	}
	if u.unit != "" && u.byUnit {
		_, err := systemctl(ctx, "daemon-reload")
		errs = append(errs, err)
	}
	if !u.keepData && filepath.Clean(u.c.String("config")) == defaultConfigFile {
		_ = os.Remove(filepath.Dir(defaultConfigFile)) // only if nothing else is in it
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	u.say("skiff is gone from this host")
	return nil
}
