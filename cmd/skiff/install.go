package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/skiff-sh/skiff/cluster/upgrade/binary"
	"github.com/skiff-sh/skiff/fsm/durable"
)

const defaultBinDir = "/usr/local/bin"

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "make this host a server or an agent that starts with the machine: program, configuration, systemd unit",
		Subcommands: []*cli.Command{
			installAs(serverCommand(), func(c *cli.Context) error { _, err := parseServer(c); return err }),
			installAs(agentCommand(), func(c *cli.Context) error { _, err := parseAgent(c); return err }),
		},
		Action: func(c *cli.Context) error {
			return usagef("what is this host to be? skiff install server, or skiff install agent")
		},
	}
}

// installAs installs role. check says what is wrong with the role's flags, before
// anything is written.
func installAs(role *cli.Command, check func(*cli.Context) error) *cli.Command {
	return &cli.Command{
		Name:  role.Name,
		Usage: "install skiff " + role.Name,
		Description: "Takes the flags of skiff " + role.Name + " and writes them to the file of --config. What is there already and as\n" +
			"it should be stays; once more is no harm. skiff uninstall takes all of it away.",
		Flags: append(role.Flags,
			binDirFlag(), unitDirFlag(),
			&cli.BoolFlag{Name: "no-start", Usage: "only write the files"},
			&cli.BoolFlag{Name: "force", Usage: "replace a configuration or unit that says otherwise; it is kept with .old behind its name"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the files and what would be done"},
		),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			i, err := newInstallation(c, role)
			if err != nil {
				return err
			}
			if i.writesConfig {
				err = c.Set("config", os.DevNull) // flags alone decide
			} else {
				err = loadConfigFile(c)
			}
			if err != nil {
				return err
			}
			if err := check(c); err != nil {
				return err
			}
			i.unit = i.unitText(c.String("data-dir"))
			if c.Bool("dry-run") {
				return i.show()
			}
			if err := needRoot("skiff install"); err != nil {
				return err
			}
			return i.run(c)
		},
	}
}

func binDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "bin-dir", Usage: "where the program is kept, as skiff", Value: defaultBinDir}
}

func unitDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "unit-dir", Usage: "where the unit " + unitName + " is kept", Value: defaultUnitDir}
}

// installation is what one run of skiff install is about to do.
type installation struct {
	c                    *cli.Context
	role                 string
	program, config, set string // paths of program and configuration; what the latter is to hold
	writesConfig         bool
	mode                 fs.FileMode
	unitPath, unit       string
	force                bool
}

func newInstallation(c *cli.Context, role *cli.Command) (*installation, error) {
	i := &installation{c: c, role: role.Name, config: c.String("config"), force: c.Bool("force"), mode: 0o644}
	var err error
	for _, p := range []struct {
		flag string
		to   *string
		name string
	}{{"bin-dir", &i.program, "skiff"}, {"unit-dir", &i.unitPath, unitName}, {"config", &i.config, ""}} {
		if *p.to, err = filepath.Abs(filepath.Join(c.String(p.flag), p.name)); err != nil {
			return nil, err
		}
		if strings.ContainsAny(*p.to, " \t\n%\"'\\$") {
			return nil, usagef("--%s %s: systemd needs a path without blanks, quotes, %% and $", p.flag, c.String(p.flag))
		}
	}
	values, err := given(c, role.Flags)
	if err != nil {
		return nil, err
	}
	if _, secret := values["token"]; secret {
		i.mode = 0o600
	}
	i.set = configHeader + "\n"
	if len(values) > 0 {
		b, err := yaml.Marshal(values)
		if err != nil {
			return nil, err
		}
		i.set += string(b)
	}
	have, err := os.ReadFile(i.config)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.writesConfig = true
	case err != nil:
		return nil, fmt.Errorf("configuration: %w", err)
	case holds(have, []byte(i.set)): // it stays
	case !i.force:
		return nil, fmt.Errorf("%s is there and says otherwise: edit it, or replace it with --force", i.config)
	default:
		i.writesConfig = true
	}
	return i, nil
}

const configHeader = "# Made by skiff install. The keys are the names of flags."

// given are the flags that were given, as the configuration file takes them.
func given(c *cli.Context, flags []cli.Flag) (map[string]any, error) {
	out := map[string]any{}
	for _, f := range flags {
		name := f.Names()[0]
		if !c.IsSet(name) || name == "config" {
			continue
		}
		switch f := f.(type) {
		case *cli.StringFlag:
			v := c.String(name)
			if isPath(name) && v != "" {
				var err error
				if v, err = filepath.Abs(v); err != nil {
					return nil, err
				}
			}
			out[name] = v
		case *cli.IntFlag:
			out[name] = c.Int(name)
		case *cli.BoolFlag:
			out[name] = c.Bool(name)
		case *cli.DurationFlag:
			out[name] = c.Duration(name).String()
		case *cli.StringSliceFlag:
			out[name] = c.StringSlice(name)
		default:
			return nil, fmt.Errorf("--%s cannot be written to a file (%T): put it there by hand", name, f)
		}
	}
	return out, nil
}

// isPath tells which flags name files: a service starts elsewhere than a shell.
func isPath(flag string) bool {
	return strings.HasSuffix(flag, "-dir") || strings.HasSuffix(flag, "-file") || flag == "resolv-conf"
}

// holds tells whether a configuration has all that another one says.
func holds(have, want []byte) bool {
	var h, w map[string]any
	if yaml.Unmarshal(have, &h) != nil || yaml.Unmarshal(want, &w) != nil {
		return false
	}
	for k, v := range w {
		if !reflect.DeepEqual(h[k], v) {
			return false
		}
	}
	return true
}

func (i *installation) say(format string, args ...any) {
	fmt.Fprintf(i.c.App.Writer, format+"\n", args...)
}

// show is --dry-run.
func (i *installation) show() error {
	i.say("program: this one, as %s", i.program)
	if i.writesConfig {
		i.say("\nconfiguration %s, mode %o:\n%s", i.config, i.mode, i.set)
	} else {
		i.say("\nconfiguration: %s stays as it is\n", i.config)
	}
	i.say("unit %s:\n%s", i.unitPath, i.unit)
	i.say("then: %s", strings.Join(i.commands(), " && "))
	return nil
}

// commands make systemd use the unit.
func (i *installation) commands() []string {
	return []string{"systemctl daemon-reload", "systemctl enable " + unitName, "systemctl restart " + unitName}
}

func (i *installation) run(c *cli.Context) error {
	old, err := os.ReadFile(i.unitPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unit: %w", err)
	}
	if err == nil && !strings.HasPrefix(string(old), unitHeader) && !i.force {
		return fmt.Errorf("%s is there and was not made by skiff install: remove it, or replace it with --force", i.unitPath)
	}
	changed, err := binary.Put(i.program)
	if err != nil {
		return err
	}
	i.tell(changed, "program", i.program)
	if i.writesConfig {
		if err := i.write(i.config, i.set, i.mode); err != nil {
			return err
		}
		changed = true
	}
	i.tell(i.writesConfig, "configuration", i.config)
	if string(old) != i.unit {
		if len(old) > 0 && strings.HasPrefix(string(old), unitHeader) {
			err = durable.Replace(i.unitPath, []byte(i.unit), 0o644)
		} else {
			err = i.write(i.unitPath, i.unit, 0o644)
		}
		if err != nil {
			return err
		}
		changed = true
	}
	i.tell(string(old) != i.unit, "unit", i.unitPath)
	switch {
	case c.Bool("no-start"):
	case !systemdRuns() || filepath.Dir(i.unitPath) != defaultUnitDir:
		i.say("systemd does not run here, or does not read that folder. To start skiff with it: %s", strings.Join(i.commands(), " && "))
		i.say("To start it without: %s %s --config %s", i.program, i.role, i.config)
		return nil
	default:
		return i.start(c.Context, changed)
	}
	i.say("to start it: %s", strings.Join(i.commands(), " && "))
	return nil
}

func (i *installation) tell(changed bool, what, path string) {
	if changed {
		i.say("%s: %s is written", what, path)
	} else {
		i.say("%s: %s stays as it is", what, path)
	}
}

// write keeps what is there.
func (i *installation) write(path, text string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep what is there: %w", err)
	}
	return durable.Replace(path, []byte(text), mode)
}

// installedDataDir is the data directory of what is installed.
func installedDataDir(c *cli.Context) (string, error) {
	dir := c.String("data-dir")
	b, err := os.ReadFile(c.String("config"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("configuration: %w", err)
	}
	var file struct {
		DataDir string `json:"data-dir"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return "", usagef("config file %s: %v", c.String("config"), err)
	}
	if file.DataDir != "" && !slices.Contains(c.FlagNames(), "data-dir") {
		dir = file.DataDir
	}
	return filepath.Abs(dir)
}
