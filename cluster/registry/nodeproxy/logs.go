package nodeproxy

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericrest "k8s.io/apiserver/pkg/registry/generic/rest"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Logs serves pods/log: what a container wrote, streamed from its node.
type Logs struct {
	pods  pods
	nodes NodeAccess
}

var (
	_ rest.GetterWithOptions = (*Logs)(nil)
	_ rest.StorageMetadata   = (*Logs)(nil)
)

// NewLogs serves pods/log of the pods that getter reads.
func NewLogs(getter rest.Getter, nodes NodeAccess) *Logs { return &Logs{pods{getter}, nodes} }

// New implements rest.Storage.
func (l *Logs) New() runtime.Object { return &corev1.Pod{} }

// Destroy implements rest.Storage.
func (l *Logs) Destroy() {}

// ProducesMIMETypes implements rest.StorageMetadata.
func (l *Logs) ProducesMIMETypes(string) []string { return []string{"text/plain"} }

// ProducesObject implements rest.StorageMetadata.
func (l *Logs) ProducesObject(string) any { return "" }

// OverrideMetricsVerb implements rest.StorageMetricsOverride.
func (l *Logs) OverrideMetricsVerb(verb string) string {
	if verb == "GET" {
		return "CONNECT"
	}
	return verb
}

// NewGetOptions implements rest.GetterWithOptions.
func (l *Logs) NewGetOptions() (runtime.Object, bool, string) {
	return &corev1.PodLogOptions{}, false, ""
}

// Get implements rest.GetterWithOptions: the object it gives is a stream. A pod
// that is on no node yet has an empty log.
func (l *Logs) Get(ctx context.Context, name string, options runtime.Object) (runtime.Object, error) {
	o, ok := options.(*corev1.PodLogOptions)
	if !ok {
		return nil, fmt.Errorf("log of pod %s: invalid options object: %#v", name, options)
	}
	if errs := validateLogOptions(o); len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("PodLogOptions").GroupKind(), name, errs)
	}
	pod, err := l.pods.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	container, err := containerOf(pod, o.Container)
	if err != nil {
		return nil, err
	}
	streamer := &genericrest.LocationStreamer{
		ContentType:     "text/plain",
		Flush:           o.Follow,
		ResponseChecker: genericrest.NewGenericHttpResponseChecker(schema.GroupResource{Resource: "pods/log"}, name),
		RedirectChecker: genericrest.PreventRedirects,
	}
	if pod.Spec.NodeName == "" {
		return streamer, nil
	}
	location, endpoint, err := onNode(ctx, l.nodes, pod, logQuery(o), "containerLogs", container)
	if err != nil {
		return nil, err
	}
	streamer.Location, streamer.Transport = location, endpoint.Transport
	if o.InsecureSkipTLSVerifyBackend {
		if endpoint.Insecure == nil {
			return nil, apierrors.NewBadRequest("insecureSkipTLSVerifyBackend is not supported here")
		}
		streamer.Transport = endpoint.Insecure
	}
	return streamer, nil
}

func logQuery(o *corev1.PodLogOptions) url.Values {
	query := url.Values{}
	for name, set := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if set {
			query.Set(name, "true")
		}
	}
	for name, n := range map[string]*int64{"sinceSeconds": o.SinceSeconds, "tailLines": o.TailLines, "limitBytes": o.LimitBytes} {
		if n != nil {
			query.Set(name, strconv.FormatInt(*n, 10))
		}
	}
	if o.SinceTime != nil {
		query.Set("sinceTime", o.SinceTime.Format(time.RFC3339))
	}
	if o.Stream != nil {
		query.Set("stream", *o.Stream)
	}
	return query
}

func validateLogOptions(o *corev1.PodLogOptions) field.ErrorList {
	var errs field.ErrorList
	if o.TailLines != nil && *o.TailLines < 0 {
		errs = append(errs, field.Invalid(field.NewPath("tailLines"), *o.TailLines, "must be greater than or equal to 0"))
	}
	if o.LimitBytes != nil && *o.LimitBytes < 1 {
		errs = append(errs, field.Invalid(field.NewPath("limitBytes"), *o.LimitBytes, "must be greater than 0"))
	}
	switch {
	case o.SinceSeconds != nil && o.SinceTime != nil:
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	case o.SinceSeconds != nil && *o.SinceSeconds < 1:
		errs = append(errs, field.Invalid(field.NewPath("sinceSeconds"), *o.SinceSeconds, "must be greater than 0"))
	}
	if s := o.Stream; s != nil {
		known := []string{corev1.LogStreamAll, corev1.LogStreamStdout, corev1.LogStreamStderr}
		if *s != known[0] && *s != known[1] && *s != known[2] {
			errs = append(errs, field.NotSupported(field.NewPath("stream"), *s, known))
		}
		if *s != corev1.LogStreamAll && o.TailLines != nil {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
	}
	return errs
}
