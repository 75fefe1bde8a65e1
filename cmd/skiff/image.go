package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/node/image"
)

func imageCommand() *cli.Command {
	flags := func(more ...cli.Flag) []cli.Flag { return append([]cli.Flag{dataDirFlag(), configFlag()}, more...) }
	return &cli.Command{
		Name:  "image",
		Usage: "the images on this host; works beside a running server",
		Subcommands: []*cli.Command{
			{
				Name: "import", Usage: "load images from docker-save or OCI archives", ArgsUsage: "FILE...",
				Flags: flags(), Action: importImages,
			},
			{
				Name: "pull", Usage: "fetch an image from its registry", ArgsUsage: "IMAGE",
				Flags: flags(
					&cli.StringFlag{Name: "username", Usage: "registry user", EnvVars: env("username")},
					&cli.StringFlag{Name: "password-file", Usage: "file with the registry password", EnvVars: env("password-file")}),
				Action: pullImage,
			},
			{
				Name: "ls", Aliases: []string{"list"}, Usage: "list images",
				Flags: flags(outputFlag()), Action: listImages,
			},
			{
				Name: "rm", Usage: "remove images that no container uses", ArgsUsage: "IMAGE...",
				Flags: flags(), Action: removeImages,
			},
			{
				Name: "pin", Usage: "never remove images to make room, as is so for imported ones", ArgsUsage: "IMAGE...",
				Flags: flags(), Action: func(c *cli.Context) error { return pinImages(c, true) },
			},
			{
				Name: "unpin", Usage: "let images be removed when no container uses them and room is needed", ArgsUsage: "IMAGE...",
				Flags: flags(), Action: func(c *cli.Context) error { return pinImages(c, false) },
			},
		},
	}
}

func openImages(c *cli.Context) (*image.Store, error) {
	registries, err := loadRegistries(c)
	if err != nil {
		return nil, err
	}
	if err := needRoot("skiff image"); err != nil {
		return nil, err
	}
	return image.Open(image.Config{
		Dir:        filepath.Join(c.String("data-dir"), "node", "images"),
		Registries: registries,
		Logger:     slog.New(slog.DiscardHandler),
	})
}

func importImages(c *cli.Context) (err error) {
	if !c.Args().Present() {
		return usagef("name at least one archive: skiff image import FILE...")
	}
	s, err := openImages(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, path := range c.Args().Slice() {
		bar := newBar(path)
		images, err := s.Import(c.Context, path, bar.image)
		bar.done()
		if err != nil {
			return err
		}
		for _, i := range images {
			fmt.Fprintln(c.App.Writer, "imported", nameOf(i))
		}
	}
	return nil
}

func pullImage(c *cli.Context) (err error) {
	if c.NArg() != 1 {
		return usagef("name one image: skiff image pull IMAGE")
	}
	var keys authn.Keychain = authn.DefaultKeychain
	if user := c.String("username"); user != "" {
		b, err := os.ReadFile(c.String("password-file"))
		if err != nil {
			return usagef("--password-file: %v", err)
		}
		if keys, err = basicAuth(c.Args().First(), user, string(b)); err != nil {
			return usagef("%v", err)
		}
	}
	s, err := openImages(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	bar := newBar(c.Args().First())
	i, err := s.Pull(c.Context, c.Args().First(), keys, bar.image)
	bar.done()
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, "pulled", nameOf(i))
	return nil
}

func listImages(c *cli.Context) (err error) {
	if err := noArgs(c); err != nil {
		return err
	}
	asJSON, err := wantJSON(c)
	if err != nil {
		return err
	}
	s, err := openImages(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	images, err := s.List()
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(c.App.Writer).Encode(map[string]any{"images": images})
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tSIZE\tPINNED")
	for _, i := range images {
		names := i.RepoTags
		if len(names) == 0 {
			names = i.RepoDigests
		}
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, n := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\t%v\n", n, shortID(i.ID), bytesText(i.Size), i.Pinned)
		}
	}
	return w.Flush()
}

func removeImages(c *cli.Context) (err error) {
	if !c.Args().Present() {
		return usagef("name at least one image: skiff image rm IMAGE...")
	}
	s, err := openImages(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, ref := range c.Args().Slice() {
		if err := s.Remove(c.Context, ref); err != nil {
			return fmt.Errorf("remove %s: %w", ref, err)
		}
		fmt.Fprintln(c.App.Writer, "removed", ref)
	}
	return nil
}

func pinImages(c *cli.Context, pin bool) (err error) {
	done := map[bool]string{true: "pinned", false: "unpinned"}[pin]
	if !c.Args().Present() {
		return usagef("name at least one image: skiff image %s IMAGE...", c.Command.Name)
	}
	s, err := openImages(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, ref := range c.Args().Slice() {
		if err := s.Pin(ref, pin); err != nil {
			return fmt.Errorf("%s %s: %w", c.Command.Name, ref, err)
		}
		fmt.Fprintln(c.App.Writer, done, ref)
	}
	return nil
}

func nameOf(i *image.Image) string {
	switch {
	case len(i.RepoTags) > 0:
		return i.RepoTags[0]
	case len(i.RepoDigests) > 0:
		return i.RepoDigests[0]
	}
	return i.ID
}

func shortID(id string) string {
	const prefix, n = "sha256:", 12
	if len(id) > len(prefix)+n {
		return id[len(prefix) : len(prefix)+n]
	}
	return id
}

// bytesText writes n as people read sizes.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1fGi", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1fMi", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1fKi", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d", n)
}

// basicAuth is a keychain for one registry.
func basicAuth(ref, user, password string) (authn.Keychain, error) {
	full, err := image.Normalize(ref)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]any{"auths": map[string]any{registryOf(full): map[string]string{"username": user, "password": trimNewline(password)}}})
	if err != nil {
		return nil, err
	}
	return image.Keychain(b)
}
