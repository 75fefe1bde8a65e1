package volume

import (
	"context"
	"fmt"
	"os"
	"path"
	"time"

	v1 "k8s.io/api/core/v1"
)

// collector gathers the files of one volume from its sources.
type collector struct {
	m       *Manager
	ctx     context.Context
	pod     *v1.Pod
	fields  Fields
	volume  string
	mode    os.FileMode
	group   *int64
	files   map[string]file
	refresh time.Time // of the token that expires first
}

func (c *collector) put(name string, data []byte, m *int32) {
	f := file{data: data, mode: c.mode}
	if m != nil {
		f.mode = mode(m)
	}
	c.files[path.Clean(name)] = f
}

func (c *collector) configMap(name string, items []v1.KeyToPath, optional *bool) error {
	cm, err := c.m.cfg.Objects.ConfigMap(c.ctx, c.pod.Namespace, name)
	if err != nil {
		return optionalMissing(err, optional)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return c.pick(data, items, optional)
}

func (c *collector) secret(name string, items []v1.KeyToPath, optional *bool) error {
	s, err := c.m.cfg.Objects.Secret(c.ctx, c.pod.Namespace, name)
	if err != nil {
		return optionalMissing(err, optional)
	}
	return c.pick(s.Data, items, optional)
}

func (c *collector) pick(data map[string][]byte, items []v1.KeyToPath, optional *bool) error {
	if len(items) == 0 {
		for k, v := range data {
			c.put(k, v, nil)
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("references non-existent config key: %s", it.Key)
		}
		c.put(it.Path, v, it.Mode)
	}
	return nil
}

func (c *collector) downward(items []v1.DownwardAPIVolumeFile) error {
	for _, it := range items {
		var v string
		var err error
		switch {
		case it.FieldRef != nil:
			v, err = c.fields.Field(c.pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			ref := it.ResourceFieldRef
			var ctr *v1.Container
			for i := range c.pod.Spec.Containers {
				if c.pod.Spec.Containers[i].Name == ref.ContainerName {
					ctr = &c.pod.Spec.Containers[i]
				}
			}
			for i := range c.pod.Spec.InitContainers {
				if c.pod.Spec.InitContainers[i].Name == ref.ContainerName {
					ctr = &c.pod.Spec.InitContainers[i]
				}
			}
			if ctr == nil {
				return fmt.Errorf("container %s not found", ref.ContainerName)
			}
			v, err = c.fields.Resource(c.pod, ctr, ref.Resource, ref.Divisor)
		default:
			err = fmt.Errorf("file %s names no source", it.Path)
		}
		if err != nil {
			return err
		}
		c.put(it.Path, []byte(v), it.Mode)
	}
	return nil
}

func (c *collector) projected(sources []v1.VolumeProjection) error {
	for _, s := range sources {
		var err error
		switch {
		case s.ConfigMap != nil:
			err = c.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
		case s.Secret != nil:
			err = c.secret(s.Secret.Name, s.Secret.Items, s.Secret.Optional)
		case s.DownwardAPI != nil:
			err = c.downward(s.DownwardAPI.Items)
		case s.ServiceAccountToken != nil:
			err = c.token(s.ServiceAccountToken)
		default:
			err = fmt.Errorf("this kind of projected source is not supported")
		}
		if err != nil {
			return err
		}
	}
	return nil
}
