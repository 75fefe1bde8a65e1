package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi"
	openapiv3 "k8s.io/apiextensions-apiserver/pkg/controller/openapiv3"
	"k8s.io/apimachinery/pkg/labels"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	openapicommon "k8s.io/kube-openapi/pkg/common"
)

// lazyOpenAPI serves /openapi/v2 and /openapi/v3. The documents of each are
// built, and those of custom resources joined, when somebody asks for the first
// time: that takes time and memory which many servers never need.
type lazyOpenAPI struct {
	server *genericapiserver.GenericAPIServer
	v2     *openapicommon.Config
	v3     *openapicommon.OpenAPIV3Config
	crds   *crds

	mu  sync.Mutex
	ctx context.Context // of Run; set before the first request
}

func (l *lazyOpenAPI) install(m *mux.PathRecorderMux) {
	v2 := &lazyHandler{owner: l, build: l.buildV2}
	v3 := &lazyHandler{owner: l, build: l.buildV3}
	m.Handle("/openapi/v2", v2)
	m.Handle("/openapi/v3", v3)
	m.HandlePrefix("/openapi/v3/", v3)
}

// run sets the life of what is started for the documents.
func (l *lazyOpenAPI) run(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx = ctx
}

// building is held while the library describes types: it changes the
// definitions that all descriptions share.
var building sync.Mutex

// lazyHandler is built by its first request.
type lazyHandler struct {
	owner   *lazyOpenAPI
	build   func(context.Context) http.Handler
	once    sync.Once
	handler http.Handler
}

// ServeHTTP implements http.Handler.
func (h *lazyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.owner.mu.Lock()
	ctx := h.owner.ctx
	h.owner.mu.Unlock()
	if ctx == nil {
		http.Error(w, "the API is still starting", http.StatusServiceUnavailable)
		return
	}
	h.once.Do(func() { h.handler = h.build(ctx) })
	h.handler.ServeHTTP(w, r)
}

func (l *lazyOpenAPI) buildV2(ctx context.Context) http.Handler {
	m := mux.NewPathRecorderMux("openapi")
	building.Lock()
	v2, static := routes.OpenAPI{Config: l.v2}.InstallV2(l.server.Handler.GoRestfulContainer, m)
	building.Unlock()
	go openapiv2.NewController(l.crds.Informers.Apiextensions().V1().CustomResourceDefinitions()).Run(static, v2, ctx.Done())
	return m
}

func (l *lazyOpenAPI) buildV3(ctx context.Context) http.Handler {
	m := mux.NewPathRecorderMux("openapi")
	building.Lock()
	v3 := routes.OpenAPI{V3Config: l.v3}.InstallV3(l.server.Handler.GoRestfulContainer, m)
	building.Unlock()
	go openapiv3.NewController(l.crds.Informers.Apiextensions().V1().CustomResourceDefinitions()).Run(v3, ctx.Done())
	l.awaitCRDs(ctx, m)
	return m
}

const (
	crdDocumentsWait = 2 * time.Second
	crdDocumentsStep = 5 * time.Millisecond
)

// awaitCRDs returns when the documents of the custom resources that are known
// now have been joined, so that the first answer has them already. The library
// tells nobody, so the index of documents is looked at.
func (l *lazyOpenAPI) awaitCRDs(ctx context.Context, m http.Handler) {
	all, err := l.crds.lister.List(labels.Everything())
	if err != nil {
		return
	}
	var want []string
	for _, crd := range all {
		if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served {
				want = append(want, `"apis/`+crd.Spec.Group+"/"+v.Name+`"`)
			}
		}
	}
	for deadline := time.Now().Add(crdDocumentsWait); len(want) > 0 && time.Now().Before(deadline) && ctx.Err() == nil; {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi/v3", nil))
		index := w.Body.String()
		for len(want) > 0 && strings.Contains(index, want[0]) {
			want = want[1:]
		}
		if len(want) > 0 {
			time.Sleep(crdDocumentsStep)
		}
	}
}
