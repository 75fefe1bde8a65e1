package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/skiff-sh/skiff/node/image"
)

const (
	defaultDataDir    = "/var/lib/skiff"
	defaultConfigFile = "/etc/skiff/config.yaml"
)

// env names the environment variable of a flag.
func env(flag string) []string {
	return []string{"SKIFF_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

func dataDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "data-dir", Usage: "where all state is kept", Value: defaultDataDir, EnvVars: env("data-dir")}
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "table or json", Value: "table", EnvVars: env("output")}
}

// wantJSON reads --output.
func wantJSON(c *cli.Context) (bool, error) {
	switch o := c.String("output"); o {
	case "json":
		return true, nil
	case "table":
		return false, nil
	default:
		return false, usagef("--output is %q, want table or json", o)
	}
}

// loadConfigFile sets every flag that neither the command line nor the
// environment set from the YAML file of --config. Keys are the flags' names. A
// file that was not asked for may be missing.
func loadConfigFile(c *cli.Context) error {
	path := c.String("config")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !c.IsSet("config") {
		return nil
	}
	if err != nil {
		return usagef("read config file: %v", err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(b, &values); err != nil {
		return usagef("config file %s: %v", path, err)
	}
	known := map[string]cli.Flag{}
	var names []string
	for _, f := range c.Command.Flags {
		if n := f.Names()[0]; n != "config" && n != "help" {
			known[n] = f
			names = append(names, n)
		}
	}
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if k == registriesKey {
			continue // structured: loadRegistries reads it
		}
		if known[k] == nil {
			sort.Strings(names)
			return usagef("config file %s: unknown key %q; known keys are %s and %s", path, k, strings.Join(names, ", "), registriesKey)
		}
		if c.IsSet(k) {
			continue
		}
		texts, err := configValues(known[k], values[k])
		if err != nil {
			return usagef("config file %s: %s: %v", path, k, err)
		}
		for _, t := range texts {
			if err := c.Set(k, t); err != nil {
				return usagef("config file %s: %s: %v", path, k, err)
			}
		}
	}
	return nil
}

// registriesKey of the config file has no flag: it maps registry hosts to
// mirrors and TLS settings (see image.Registry).
const registriesKey = "registries"

// loadRegistries reads the registries of the config file.
func loadRegistries(c *cli.Context) (map[string]image.Registry, error) {
	path := c.String("config")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !c.IsSet("config") {
		return nil, nil
	}
	if err != nil {
		return nil, usagef("read config file: %v", err)
	}
	var file struct {
		Registries json.RawMessage `json:"registries"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return nil, usagef("config file %s: %v", path, err)
	}
	if len(file.Registries) == 0 {
		return nil, nil
	}
	out := map[string]image.Registry{}
	d := json.NewDecoder(bytes.NewReader(file.Registries))
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		return nil, usagef("config file %s: %s: %v", path, registriesKey, err)
	}
	return out, nil
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "YAML file with the flags' names as keys", Value: defaultConfigFile, EnvVars: env("config")}
}

// configValues gives what to pass to Set, once for each element of a list.
func configValues(f cli.Flag, v any) ([]string, error) {
	_, isSlice := f.(*cli.StringSliceFlag)
	switch x := v.(type) {
	case []any:
		if !isSlice {
			return nil, errors.New("takes one value, not a list")
		}
		var out []string
		for _, e := range x {
			s, err := scalar(e)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
		return out, nil
	case map[string]any:
		if !isSlice {
			return nil, errors.New("takes one value, not a map")
		}
		var out []string
		for k, e := range x {
			s, err := scalar(e)
			if err != nil {
				return nil, err
			}
			out = append(out, k+"="+s)
		}
		slices.Sort(out)
		return out, nil
	}
	s, err := scalar(v)
	return []string{s}, err
}

func scalar(v any) (string, error) {
	switch x := v.(type) {
	case string:
		return x, nil
	case bool, float64, int64, int:
		return fmt.Sprint(x), nil
	}
	return "", fmt.Errorf("unusable value %v", v)
}
